"""The router: requests in, an ordered choice of replicas out, and the faces around it."""
