"""The same training step in other libraries, each through its public interface, in an environment of its own."""
