"""The system from outside: real processes, real ports, real files."""
