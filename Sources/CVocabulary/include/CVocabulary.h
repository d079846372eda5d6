// The vocabulary of CLIP's tokenizer, embedded when this target is compiled. Single files of weights come without one.
#ifndef CVOCABULARY_H
#define CVOCABULARY_H

#include <stddef.h>

/// The text of Models/demo/tokenizer/vocab.json: tokens and their ids.
const void *diffused_clip_vocabulary(void);
/// Its bytes.
size_t diffused_clip_vocabulary_size(void);

/// The text of Models/demo/tokenizer/merges.txt: pairs of tokens in the order they are joined.
const void *diffused_clip_merges(void);
/// Its bytes.
size_t diffused_clip_merges_size(void);

#endif
