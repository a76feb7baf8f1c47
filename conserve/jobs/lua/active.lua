-- The batches in an index, oldest first, as one text: ids and scores by turns, with blanks between. KEYS: the index. One
-- answer, since taking a thousand apart is most of the client's work.
return table.concat(redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES'), ' ')
