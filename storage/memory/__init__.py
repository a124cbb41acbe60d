"""Pages in GPU and host memory: slots, who gives way, what the store knows of each page."""
