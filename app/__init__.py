"""Darkroom: pictures that develop before your eyes, and learn which ones people prefer."""
