"""The same tasks with TextGrad and GEPA, each through its public interface, in an environment of its own."""
