"""Models: search the hub, read file headers, estimate memory, detect the hardware, download."""
