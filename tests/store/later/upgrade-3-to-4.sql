-- Lists get a note.
ALTER TABLE permits ADD COLUMN noted TEXT NOT NULL DEFAULT '';
