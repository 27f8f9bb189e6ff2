"""The same tasks with TextGrad, GEPA and DSPy, each through its public interface, in an environment of its own."""
