"""``lmf bench kernels``: every kernel that can run here beside plain PyTorch and beside what the device could do."""
