"""The tables and figures of the paper, with the recorded measurements."""
