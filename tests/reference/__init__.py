"""A slow, obvious interpreter of graphs, written from the sentences of the execution contract."""
