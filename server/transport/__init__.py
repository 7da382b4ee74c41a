"""All that leans on the internals of uvicorn, h11 and websockets, and the certificate that they serve with."""
