"""The process of one managed inference server: start, watch, log, stop."""
