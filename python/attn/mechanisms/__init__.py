"""The public functions, one module per mechanism: arguments are checked and defaulted here, autograd sits
here, ops do the work.
"""
