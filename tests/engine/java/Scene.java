import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;

/** An image file, a question about it, and the Python runner's answer. */
final class Scene {
  final byte[] file;
  final String question;
  final String text;
  final int[] ids;

  Scene(String[] fields) throws IOException {
    file = Files.readAllBytes(Path.of(fields[0]));
    question = fields[1];
    text = fields[2];
    ids = Arrays.stream(fields[3].split(",")).mapToInt(Integer::parseInt).toArray();
  }
}
