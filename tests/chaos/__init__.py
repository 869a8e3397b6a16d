"""Processes that are really killed, and a checker that works from outside transcripts."""
