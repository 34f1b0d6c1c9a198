// A loaded package and one conversation with its model, on the C interface in runner/cpp/engine/llava.h.
import CLlava
import Foundation

struct LlavaError: LocalizedError {
  let status: llava_status
  let message: String

  var errorDescription: String? { message }
}

final class LlavaSession: @unchecked Sendable {
  private let session: llava_session
  // What computes runs here, one call after the other. Swift's own tasks must not wait.
  private let queue = DispatchQueue(label: "llava")

  /// Opens a package. Weights are packed into a folder that the app can write.
  init(package: URL, packedCache: URL) throws {
    var opened: llava_session = 0
    let status = packedCache.path.withCString { folder in
      var options = llava_open_options()
      options.struct_size = MemoryLayout<llava_open_options>.stride
      options.packed_cache_path = folder
      return llava_open(package.path, &options, &opened)
    }
    session = opened
    try check(status)
  }

  deinit {
    if session != 0 {
      llava_close(session)
    }
  }

  /// Begins a conversation about an image: the content of an image file. The model reads it while the user types.
  func read(_ image: Data) async throws {
    llava_cancel(session)
    try await withCheckedThrowingContinuation { (done: CheckedContinuation<Void, Error>) in
      queue.async { [self] in
        done.resume(
          with: Result {
            try check(llava_reset(session))
            try image.withUnsafeBytes { try check(llava_add_image(session, $0.baseAddress, $0.count)) }
            try check(llava_read_ahead(session))
          })
      }
    }
  }

  /// Asks, and returns the pieces of the answer as they come. Who stops reading them ends the answer.
  func ask(_ question: String, maxNewTokens: Int32) -> AsyncThrowingStream<String, Error> {
    AsyncThrowingStream { pieces in
      queue.async { [self] in
        do {
          try answer(question, maxNewTokens: maxNewTokens, to: pieces)
          pieces.finish()
        } catch {
          pieces.finish(throwing: error)
        }
      }
    }
  }

  /// Ends the answer that is being made, from any thread.
  func cancel() {
    llava_cancel(session)
  }

  private func answer(
    _ question: String, maxNewTokens: Int32, to pieces: AsyncThrowingStream<String, Error>.Continuation
  ) throws {
    var options = llava_ask_options()
    options.struct_size = MemoryLayout<llava_ask_options>.stride
    options.max_new_tokens = maxNewTokens
    try check(llava_begin(session, question, &options))
    while true {
      var text: UnsafePointer<CChar>?
      let status = llava_next(session, &text, nil)
      if status == LLAVA_END {
        return
      }
      try check(status)
      if let text, case .terminated = pieces.yield(String(cString: text)) {
        return
      }
    }
  }
}

private func check(_ status: llava_status) throws {
  if status != LLAVA_OK {
    throw LlavaError(status: status, message: String(cString: llava_error()))
  }
}
