// One screen: choose an image, ask, and see the answer as it comes.
import PhotosUI
import SwiftUI

private let longestSide: CGFloat = 1024  // pixels; the model sees fewer

@main
struct AskApp: App {
  var body: some Scene {
    WindowGroup { AskView(model: AskModel()) }
  }
}

/// What the screen shows, and what its buttons do.
@MainActor
final class AskModel: ObservableObject {
  @Published var image: UIImage?
  @Published var question = "What is in the image?"
  @Published var answer = ""
  @Published var isReady = false

  private var session: LlavaSession?

  /// Opens the folder "package" of the app.
  func open() async {
    guard session == nil else {
      return
    }
    answer = "Loading ..."
    await report {
      guard let package = Bundle.main.url(forResource: "package", withExtension: nil) else {
        throw CocoaError(.fileNoSuchFile)
      }
      let caches = try FileManager.default.url(
        for: .cachesDirectory, in: .userDomainMask, appropriateFor: nil, create: true)
      session = try await Task.detached { try LlavaSession(package: package, packedCache: caches) }.value
      answer = "Choose an image."
    }
  }

  /// Begins a conversation about an image.
  func read(_ item: PhotosPickerItem) async {
    await report {
      guard let session, let data = try await item.loadTransferable(type: Data.self),
        let chosen = UIImage(data: data)
      else {
        return
      }
      isReady = false
      image = chosen
      try await session.read(png(of: chosen))
      answer = ""
      isReady = true
    }
  }

  func ask() async {
    answer = ""
    await report {
      guard let session else {
        return
      }
      for try await piece in session.ask(question, maxNewTokens: 200) {
        answer += piece
      }
    }
  }

  func stop() {
    session?.cancel()
  }

  private func report(_ call: () async throws -> Void) async {
    do {
      try await call()
    } catch {
      answer = "Error: \(error.localizedDescription)"
    }
  }
}

/// Returns an image of any kind that iOS knows as PNG, the right way up and not too large.
private func png(of image: UIImage) -> Data {
  let scale = min(1, longestSide / max(image.size.width, image.size.height))
  let size = CGSize(width: image.size.width * scale, height: image.size.height * scale)
  let format = UIGraphicsImageRendererFormat()
  format.scale = 1
  format.preferredRange = .standard
  return UIGraphicsImageRenderer(size: size, format: format).pngData { _ in
    image.draw(in: CGRect(origin: .zero, size: size))
  }
}

struct AskView: View {
  @StateObject var model: AskModel
  @State private var item: PhotosPickerItem?

  var body: some View {
    ScrollView {
      VStack(alignment: .leading, spacing: 16) {
        PhotosPicker("Choose an image", selection: $item, matching: .images)
        if let image = model.image {
          Image(uiImage: image).resizable().scaledToFit().frame(maxHeight: 300)
        }
        TextField("Question", text: $model.question)
          .textFieldStyle(.roundedBorder)
        HStack {
          Button("Ask") { Task { await model.ask() } }.disabled(!model.isReady)
          Button("Stop") { model.stop() }
        }
        Text(model.answer).textSelection(.enabled)
      }
      .padding()
    }
    .task { await model.open() }
    .onChange(of: item) { item in
      if let item {
        Task { await model.read(item) }
      }
    }
  }
}
