"""The rule language: vocabulary, syntax, and its two compilers (the core's table and the kernel's BPF)."""
