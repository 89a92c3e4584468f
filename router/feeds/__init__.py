"""The network in: discovery, scrapes, health probes. Floor 5."""
