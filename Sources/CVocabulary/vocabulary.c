// Embeds the demo model's tokenizer with #embed (C23): it is CLIP's own, which all Stable Diffusion models read.
#include "CVocabulary.h"

#pragma clang diagnostic ignored "-Wc23-extensions"

static const unsigned char vocabulary[] = {
#embed "../../Models/demo/tokenizer/vocab.json"
};
static const unsigned char merges[] = {
#embed "../../Models/demo/tokenizer/merges.txt"
};

const void *diffused_clip_vocabulary(void) { return vocabulary; }

size_t diffused_clip_vocabulary_size(void) { return sizeof vocabulary; }

const void *diffused_clip_merges(void) { return merges; }

size_t diffused_clip_merges_size(void) { return sizeof merges; }
