package dev.calora.assistant

import android.content.ClipData
import android.content.ClipboardManager
import android.os.Bundle
import androidx.activity.ComponentActivity
import androidx.activity.compose.setContent
import androidx.activity.viewModels
import androidx.compose.material3.MaterialTheme
import androidx.compose.runtime.collectAsState
import androidx.compose.runtime.getValue

class MainActivity : ComponentActivity() {
    private val model: AssistantViewModel by viewModels()

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContent {
            MaterialTheme {
                val assistant by model.assistant.collectAsState()
                val loading by model.loading.collectAsState()
                when (val ready = assistant) {
                    null -> LoadingScreen(loading)
                    else -> {
                        val state by ready.state.collectAsState()
                        AssistantScreen(state, ready.tasks, model::ask, model::stop) { model.diagnose(::copy) }
                    }
                }
            }
        }
    }

    private fun copy(text: String) =
        getSystemService(ClipboardManager::class.java).setPrimaryClip(ClipData.newPlainText("calora diagnostics", text))
}
