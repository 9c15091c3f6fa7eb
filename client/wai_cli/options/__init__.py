"""What commands read from arguments, environment and settings files."""
