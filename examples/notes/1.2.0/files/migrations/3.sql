-- This migration fails half-way: an author is not known by a number.
CREATE TABLE authors (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
INSERT INTO authors (name) SELECT DISTINCT author FROM notes;
ALTER TABLE notes RENAME COLUMN author TO author_name;
UPDATE notes SET author = (SELECT id FROM authors WHERE name = author_name);
PRAGMA user_version = 3;
