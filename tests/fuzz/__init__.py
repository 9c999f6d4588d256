"""Fuzzing: a harness that any fuzzer may drive, and the inputs that were worth keeping."""
