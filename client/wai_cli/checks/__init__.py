"""What `wai doctor` looks at, one module for each kind of check."""
