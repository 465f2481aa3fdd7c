package dev.calora.minimal

import android.app.Activity
import android.os.Bundle
import android.widget.TextView
import dev.calora.EngineException
import java.io.File
import kotlinx.coroutines.MainScope
import kotlinx.coroutines.cancel
import kotlinx.coroutines.launch

/**
 * Runs the quick start and shows what it says. Model and adapters lie in the app's own folder, where adb can put them:
 * `adb push models/base models/adapters /sdcard/Android/data/dev.calora.minimal/files/`.
 */
class MainActivity : Activity() {
    private val scope = MainScope()

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        val view = TextView(this).apply { setPadding(48, 96, 48, 48) }
        setContentView(view)
        val models = getExternalFilesDir(null) ?: File(filesDir, "models")
        scope.launch {
            if (intent.getBooleanExtra("benchmark", false)) {
                view.text = "measuring"
                benchmark(File(models, "bench"))
                view.text = "measured"
                return@launch
            }
            try {
                quickStart(models) { view.append(it) }
            } catch (e: EngineException) {
                view.append("\n${e.message}")
            }
        }
    }

    override fun onDestroy() {
        // Also stops the device, within one token.
        scope.cancel()
        super.onDestroy()
    }
}
