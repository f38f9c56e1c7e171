"""Whole conversations: those that the documents print, played to the letter."""
