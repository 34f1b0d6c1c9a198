package org.llava.sample

import android.app.Activity
import android.content.Intent
import android.graphics.Bitmap
import android.graphics.ImageDecoder
import android.net.Uri
import android.os.Bundle
import android.view.View
import android.view.ViewGroup.LayoutParams.MATCH_PARENT
import android.widget.Button
import android.widget.EditText
import android.widget.ImageView
import android.widget.LinearLayout
import android.widget.ScrollView
import android.widget.TextView
import java.io.File
import java.io.IOException
import java.util.concurrent.ExecutorService
import java.util.concurrent.Executors
import org.llava.AskOptions
import org.llava.LlavaException
import org.llava.LlavaSession
import org.llava.OpenOptions

private const val PICK = 1
private const val LONGEST_SIDE = 1024 // pixels, about; the model sees fewer

/** Asks a model on the phone about an image, and shows the answer as it comes. */
class MainActivity : Activity() {
    // What computes runs here, one call after the other: the thread of the screen must not wait.
    private val work: ExecutorService = Executors.newSingleThreadExecutor()

    @Volatile private var session: LlavaSession? = null

    private lateinit var image: ImageView
    private lateinit var question: EditText
    private lateinit var answer: TextView

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        setContentView(screen())
        val folder = File(getExternalFilesDir(null), "package")
        run("Loading ...") {
            val options = OpenOptions()
            options.packedCachePath = noBackupFilesDir.path // others cannot write there
            session = LlavaSession.open(folder.path, options)
            show("Choose an image.")
        }
    }

    override fun onDestroy() {
        session?.cancel()
        work.execute { session?.close() }
        work.shutdown() // after what was begun
        super.onDestroy()
    }

    private fun screen(): View {
        image = ImageView(this).apply { adjustViewBounds = true }
        question = EditText(this).apply { setText("What is in the image?") }
        answer = TextView(this).apply { textSize = 18f }
        val column = LinearLayout(this).apply { orientation = LinearLayout.VERTICAL }
        val views = listOf(
            button("Choose an image") { pick() }, image, question,
            button("Ask") { ask() }, button("Stop") { session?.cancel() }, answer,
        )
        for (view in views) {
            column.addView(view, LinearLayout.LayoutParams(MATCH_PARENT, LinearLayout.LayoutParams.WRAP_CONTENT))
        }
        return ScrollView(this).apply {
            fitsSystemWindows = true // not below the bars of the system
            addView(column)
        }
    }

    private fun button(text: String, action: () -> Unit) = Button(this).apply {
        this.text = text
        setOnClickListener { action() }
    }

    private fun pick() {
        startActivityForResult(Intent(Intent.ACTION_GET_CONTENT).setType("image/*"), PICK)
    }

    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        super.onActivityResult(request, result, data)
        val uri = data?.data
        if (request == PICK && result == RESULT_OK && uri != null) {
            session?.cancel()
            run("Reading ...") { read(uri) }
        }
    }

    /** Begins a conversation about an image. The model reads it while the user types. */
    private fun read(uri: Uri) {
        val model = session ?: return show("No package is open.")
        val bitmap = decode(uri)
        runOnUiThread { image.setImageBitmap(bitmap) }
        val argb = IntArray(bitmap.width * bitmap.height)
        bitmap.getPixels(argb, 0, bitmap.width, 0, 0, bitmap.width, bitmap.height)
        model.reset()
        model.addPixels(argb, bitmap.width, bitmap.height)
        model.readAhead()
        show("")
    }

    /** Returns an image of any kind that Android knows, the right way up and not too large. */
    private fun decode(uri: Uri): Bitmap =
        ImageDecoder.decodeBitmap(ImageDecoder.createSource(contentResolver, uri)) { decoder, info, _ ->
            decoder.allocator = ImageDecoder.ALLOCATOR_SOFTWARE // whose pixels can be read
            decoder.setTargetSampleSize(maxOf(1, maxOf(info.size.width, info.size.height) / LONGEST_SIDE))
        }

    private fun ask() {
        val text = question.text.toString()
        run("") {
            val model = session ?: return@run show("No package is open.")
            val options = AskOptions()
            options.maxNewTokens = 200
            model.ask(text, options) { piece ->
                runOnUiThread { answer.append(piece) }
                true // false ends the answer
            }
        }
    }

    /** Calls what computes, and shows what goes wrong. */
    private fun run(message: String, call: () -> Unit) {
        work.execute {
            show(message)
            try {
                call()
            } catch (error: LlavaException) {
                show("Error: ${error.message}")
            } catch (error: IOException) {
                show("Error: the image cannot be read: ${error.message}")
            }
        }
    }

    private fun show(text: String) = runOnUiThread { answer.text = text }
}
