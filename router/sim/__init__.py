"""The modelled replica, workloads and replay."""
