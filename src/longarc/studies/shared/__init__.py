"""What several studies stand on: their texts, networks and trainings."""
