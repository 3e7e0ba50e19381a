"""The rule language: vocabulary, syntax, and its two compilers (Python and the kernel's BPF)."""
