"""livetape: a live, replayable tape of every step of graphs and background jobs."""
