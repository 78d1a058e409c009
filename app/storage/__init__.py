"""What outlives the process: generations, votes and image files. SQLAlchemy and fsspec; blocking calls."""
