//! Ports made of memory: what tests and `replay` run the datapath on. No EAL, no root.
