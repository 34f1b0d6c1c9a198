// Tests SHA-256 against the examples of FIPS 180-4, and that every changed bit changes the digest of packed weights.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "base/descriptor.h"
#include "base/digest.h"
#include "base/sha256.h"

namespace {

int failures = 0;

void expect(bool condition, const char* what) {
  if (!condition) {
    std::printf("failed: %s\n", what);
    ++failures;
  }
}

std::string sha256(const std::string& text, size_t at_once) {
  llava::Sha256 hash;
  std::span<const uint8_t> rest(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  while (!rest.empty()) {
    const size_t count = std::min(at_once, rest.size());
    hash.add(rest.first(count));
    rest = rest.subspan(count);
  }
  return hash.digest();
}

void test_sha256() {
  const std::string two_blocks = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
  const std::string million(1000000, 'a');
  for (const size_t at_once : {1, 63, 64, 65, 1000}) {
    expect(sha256("", at_once) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "nothing");
    expect(sha256("abc", at_once) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "abc");
    expect(sha256(two_blocks, at_once) == "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1", "two");
    expect(sha256(million, at_once) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0", "million");
  }
}

void test_digest() {
  // Of xxHash's own test vectors: nothing, without a seed.
  expect(
      llava::hexadecimal(llava::digest(llava::bytes_of(""))) == "99aa06d3014798d86001c324468d497f", "XXH3 of nothing");
  std::mt19937 random(0);
  for (const size_t size : {1, 7, 8, 63, 64, 65, 127, 1000, 4096}) {
    std::vector<uint8_t> bytes(size);
    std::generate(bytes.begin(), bytes.end(), [&] { return uint8_t(random()); });
    const llava::Digest whole = llava::digest(std::span<const uint8_t>(bytes));
    for (uint8_t& byte : bytes) {
      const uint8_t flipped = uint8_t(1u << random() % 8);
      byte ^= flipped;
      expect(llava::digest(std::span<const uint8_t>(bytes)) != whole, "a flipped bit");
      byte ^= flipped;
    }
    bytes.push_back(0);
    expect(llava::digest(std::span<const uint8_t>(bytes)) != whole, "a zero at the end");
  }
}

// Tests a file larger than what one thread reads at a time, also cut where such a part ends.
void test_digest_of_file() {
  const std::string path = "/tmp/checksums_test." + std::to_string(getpid());
  std::string content(20 << 20, 'x');
  const auto digest_of = [&](uint64_t size) {
    const llava::Descriptor file(open(path.c_str(), O_RDONLY));
    return llava::digest_of_file(file.number(), size);
  };
  const auto digest_of_content = [&] {
    std::ofstream(path, std::ios::binary) << content;
    return digest_of(content.size());
  };
  const auto whole = digest_of_content();
  expect(whole && whole == digest_of(content.size()), "the same twice");
  expect(!digest_of(content.size() + 1), "a file too short");
  expect(!llava::digest_of_file(-1, 1), "no file");
  content[(16 << 20) + 5] ^= 1;
  expect(digest_of_content() != whole, "a flipped bit in a file");
  content.resize(16 << 20);
  expect(digest_of_content() != whole, "a truncated file");
  unlink(path.c_str());
}

}  // namespace

int main() {
  test_sha256();
  test_digest();
  test_digest_of_file();
  return failures != 0;
}
