"""The shared language of every part; imports none of the others."""
