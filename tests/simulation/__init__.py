"""The engine under a seeded simulator: production code on a virtual clock, with faults, judged from outside."""
