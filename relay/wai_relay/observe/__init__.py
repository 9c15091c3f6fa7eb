"""What a request was and cost, told to whom it concerns: live, in logs, in metrics."""
