-- Each note has an author from now on; of those that are there nobody knows who wrote them.
ALTER TABLE notes ADD COLUMN author TEXT NOT NULL DEFAULT 'unknown';
PRAGMA user_version = 2;
