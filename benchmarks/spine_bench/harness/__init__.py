"""Measures how fast a system grades studies. It knows no model: a system and a sample library behind two interfaces."""
