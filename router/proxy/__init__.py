"""The standalone HTTP data path. Floor 7."""
