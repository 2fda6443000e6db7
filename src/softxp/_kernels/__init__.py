"""Fast code that knows no softxp name: kernels over raw memory, compiled at first use."""
