"""This machine: its Java, child processes, interrupts, paths, and faults as one line."""
