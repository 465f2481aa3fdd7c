package dev.calora.assistant

import android.app.Application
import androidx.lifecycle.AndroidViewModel
import androidx.lifecycle.viewModelScope
import dev.calora.EngineException
import dev.calora.EngineLifecycle
import dev.calora.EngineMemoryCallbacks
import java.io.File
import kotlinx.coroutines.Job
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.launch

/** Holds the assistant across rotations; what it does is in [Assistant]. */
class AssistantViewModel(application: Application) : AndroidViewModel(application) {
    /** Before the assistant is there. */
    data class Loading(val fraction: Double = 0.0, val problem: String? = null)

    private val mutableLoading = MutableStateFlow(Loading())
    val loading: StateFlow<Loading> = mutableLoading.asStateFlow()

    private val mutableAssistant = MutableStateFlow<Assistant?>(null)
    val assistant: StateFlow<Assistant?> = mutableAssistant.asStateFlow()

    private var answering: Job? = null
    private var callbacks: EngineMemoryCallbacks? = null
    private var lifecycle: EngineLifecycle? = null

    init {
        viewModelScope.launch {
            try {
                val models = application.getExternalFilesDir(null) ?: File(application.filesDir, "models")
                val opened = Assistant.open(models) { mutableLoading.value = Loading(it.fraction) }
                callbacks =
                    EngineMemoryCallbacks(opened.engine, viewModelScope).also(application::registerComponentCallbacks)
                lifecycle =
                    EngineLifecycle(opened.engine, viewModelScope)
                        .also(application::registerActivityLifecycleCallbacks)
                mutableAssistant.value = opened
            } catch (e: EngineException) {
                mutableLoading.value = Loading(problem = e.message)
            }
        }
    }

    fun ask(request: String, task: Task? = null) {
        answering?.cancel()
        answering = viewModelScope.launch { assistant.value?.ask(request, task) }
    }

    fun stop() {
        answering?.cancel()
    }

    fun diagnose(show: (String) -> Unit) {
        viewModelScope.launch { assistant.value?.diagnostics()?.let(show) }
    }

    override fun onCleared() {
        callbacks?.let(getApplication<Application>()::unregisterComponentCallbacks)
        lifecycle?.let(getApplication<Application>()::unregisterActivityLifecycleCallbacks)
        assistant.value?.close()
    }
}
