"""pool: threads that turn the readiness of bbipc's sockets into futures, callbacks and work for workers."""
