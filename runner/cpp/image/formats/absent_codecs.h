// libtiff's codecs of LERC and JBIG call libraries that must not be linked in: libjbig is under the GPL, and a static
// libLerc cannot be a part of a shared library. Pillow's libtiff has neither, and tiff.cpp refuses such files before it
// calls libtiff. So nothing here is ever called. Only tiff_codec.cpp includes this.
#pragma once

#define LLAVA_ABSENT(function) \
  int function(...) {          \
    return 1;                  \
  }

extern "C" {
LLAVA_ABSENT(lerc_getBlobInfo)
LLAVA_ABSENT(lerc_decode)
LLAVA_ABSENT(lerc_encodeForVersion)
LLAVA_ABSENT(jbg_dec_free)
LLAVA_ABSENT(jbg_dec_getimage)
LLAVA_ABSENT(jbg_dec_getsize)
LLAVA_ABSENT(jbg_dec_in)
LLAVA_ABSENT(jbg_dec_init)
LLAVA_ABSENT(jbg_enc_free)
LLAVA_ABSENT(jbg_enc_init)
LLAVA_ABSENT(jbg_enc_out)
LLAVA_ABSENT(jbg_newlen)
LLAVA_ABSENT(jbg_strerror)
}
