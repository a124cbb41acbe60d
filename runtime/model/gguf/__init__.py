"""The reading of GGUF files, and the model directory made from one. `container` reads, `conversion` beside us asks for
it.

Inside this package `import gguf` is the library of that name, which knows the types of numbers; this one is always
imported relatively.
"""
