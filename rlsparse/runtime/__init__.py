"""What the process and the machine give: ranks, signals, GPUs, random streams, memory."""
