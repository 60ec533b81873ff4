"""The process and the machine: ranks, devices, signals, random streams, memory, and messages on the terminal."""
