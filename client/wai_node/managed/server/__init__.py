"""One managed inference server as a process: started, watched, logged, stopped."""
